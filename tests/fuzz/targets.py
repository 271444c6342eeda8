"""All that is fuzzed, by name.

For each reader: its small valid files, its mutations, and what counts as past the header. An input is past the header
where the product's own code got there: a reader wraps the function that accepts a header, and notes that it returned.
"""

from tests.fuzz import binaries, manifests, numpied, pickled, pictures, tables, tarred

TARGETS = manifests.TARGETS | pickled.TARGETS | binaries.TARGETS | pictures.TARGETS | numpied.TARGETS | \
    tarred.TARGETS | tables.TARGETS
