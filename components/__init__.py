# SPDX-License-Identifier: Apache-2.0
"""Building blocks of pipelines: one file each, found through the registry, never by import."""
