# SPDX-License-Identifier: Apache-2.0
"""Built-in mechanisms, one small file each."""
