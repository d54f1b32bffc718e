# SPDX-License-Identifier: Apache-2.0
"""How sites are reached: in process, or a process each."""
