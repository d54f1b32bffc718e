# SPDX-License-Identifier: Apache-2.0
"""What the coordinator (`osmotic.runtime.run`) keeps in mind: who was lost, which tasks are sent together."""
