# SPDX-License-Identifier: Apache-2.0
"""The contract a plugin author implements, the hooks, the host, and the built-in mechanisms and models."""
