"""The kafka source: topics, read like folders of files; see docs/kafka.md."""
