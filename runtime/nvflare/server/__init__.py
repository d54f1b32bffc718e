# SPDX-License-Identifier: Apache-2.0
"""At the server: its folder, the coordinator's lines to sites, the relay in the engine's job, a run from beginning to end."""
