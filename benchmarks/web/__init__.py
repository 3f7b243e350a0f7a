"""The browser as a device: a page that runs artifacts in onnxruntime-web, and the server that the page talks to."""
