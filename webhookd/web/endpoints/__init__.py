"""Endpoints: where a tenant's events go, as the API makes, shows and changes them."""
