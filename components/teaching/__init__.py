# SPDX-License-Identifier: Apache-2.0
"""Asking a teacher: prompts and their answers, the rows that may be shown, what is taken of an answer. No components."""
