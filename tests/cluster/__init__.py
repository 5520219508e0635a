"""Tests on several hosts: Linux network namespaces with their own addresses, names and sshd (see hosts.py)."""

import os

os.environ["PATH"] += ":/usr/sbin:/sbin"  # where ip and sshd are; root's PATH after a plain su lacks it
