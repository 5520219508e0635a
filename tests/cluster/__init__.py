"""Tests on several hosts: Linux network namespaces with their own addresses, names and sshd (see hosts.py)."""
