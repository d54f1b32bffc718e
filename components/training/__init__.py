# SPDX-License-Identifier: Apache-2.0
"""What trains a model: batches and packing, losses, engines, the loop of steps, checkpoints."""
