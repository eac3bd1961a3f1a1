"""What a network is, without tensors: fields, configs, names and shapes."""
