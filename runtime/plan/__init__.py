# SPDX-License-Identifier: Apache-2.0
"""From a pipeline's text to a graph of tasks, and all that can be said of it before anything runs."""
