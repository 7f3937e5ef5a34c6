"""What client and service agree on.

`limits` holds every bound, `messages` what is said and how it is checked, `fields` the checks of header fields,
`labels` how labels are packed, `flight` the envelope, `security` tokens and certificates, `memory` the memory that both
can read.
"""
