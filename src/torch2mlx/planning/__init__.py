"""From headers to a frozen plan: output tensors as expressions over source tensors."""
