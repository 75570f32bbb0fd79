"""The gradient checker: functions by NumPy alone, layers and nets in Caffe."""
