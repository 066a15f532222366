"""The appliance: everything that makes the four libraries one product."""
