"""The LiteRT target (formerly TensorFlow Lite): .tflite files for Android, iOS and small Linux boards."""
