"""Data for nets of several labels: annotation formats, one stream of labels, and what Caffe reads."""
