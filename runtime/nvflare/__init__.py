# SPDX-License-Identifier: Apache-2.0
"""Past one machine: NVFlare carries what parties ask each other, over TLS, from sites that only open connections outwards."""
