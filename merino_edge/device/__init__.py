"""Devices: where they are, how they are reached, and what they are asked.

registry.py board.py              your devices, and the kinds of board they are
transport.py ssh.py ...           bytes and programs to a device: this machine, SSH
provision.py                      the agent and a runtime onto it
agent_link.py                     a conversation with the agent: handshake, heartbeat, requests, uploads
records.py                        what is asked and answered, checked
releases.py                       bundles onto it
client.py                         the device as flows see it
"""
