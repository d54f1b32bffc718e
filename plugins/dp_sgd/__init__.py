# SPDX-License-Identifier: Apache-2.0
"""DP-SGD: one plan binds Poisson sampling, clipping, noise and accountant; the host runs it (`Context.private_training`)."""
