# SPDX-License-Identifier: Apache-2.0
"""What both ends stand on: kits with certificates, their settings made strict, the engine's standing processes."""
