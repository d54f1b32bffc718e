# SPDX-License-Identifier: Apache-2.0
"""What the aggregator is made of: who fits (checks), means, low-rank products, robust rules, noise, server optimisers."""
