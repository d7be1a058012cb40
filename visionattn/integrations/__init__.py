"""Integrations with other libraries; each module is imported only on request."""
