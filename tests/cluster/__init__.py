"""Clusters of database servers, and what becomes of keys while their nodes fail."""
