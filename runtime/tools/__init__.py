# SPDX-License-Identifier: Apache-2.0
"""Commands that run no pipeline: cards, sanitising of text, conversion, schemas for editors, lock files."""
