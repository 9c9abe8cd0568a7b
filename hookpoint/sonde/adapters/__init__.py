"""Adapters: how serving engines tell Sonde whose rows they compute; see `contract`."""
