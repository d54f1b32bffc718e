# SPDX-License-Identifier: Apache-2.0
"""What is shown at a terminal: tables, progress, status."""
