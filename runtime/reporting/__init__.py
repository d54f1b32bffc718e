# SPDX-License-Identifier: Apache-2.0
"""The report of a run: what it shows is gathered here, laid out, and written as one HTML file that needs nothing but itself."""
