"""The whole story on one machine: three hospitals, a coordinator, a PACS and a workstation."""
