"""What a method costs: parameters, operations, seconds, memory."""
