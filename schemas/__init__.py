# SPDX-License-Identifier: Apache-2.0
"""Bottom layer: what documents, records, artifacts, labels, guarantees and messages look like."""
