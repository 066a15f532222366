"""The consortium's ledger: one chain of signed blocks that every site keeps whole and countersigns."""
