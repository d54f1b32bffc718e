# SPDX-License-Identifier: Apache-2.0
"""The worker of one party of a FATE job: started by the bridge in FATE's environment, in an environment of its own."""
