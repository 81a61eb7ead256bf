"""What a command does, one file each: the rooms are tied together here and nowhere else.

A flow takes plain values, reports through `progress`, returns the JSON document of its command,
and raises `MerinoEdgeError`. It prints nothing.
"""
