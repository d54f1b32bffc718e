# SPDX-License-Identifier: Apache-2.0
"""Osmotic in FATE: the components, and the bridge that carries bytes between FATE and an osmotic worker.

Standard library only, Python 3.8 or later. Nothing is imported here: FATE loads the components for each of its tasks.
"""

__version__ = "0.1.0"
PROTOCOL = 1  # of the frames between bridge and worker, and of the messages between bridges
