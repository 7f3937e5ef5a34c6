"""What client and service agree on.

`limits` holds every bound, `messages` what is said and how it is checked, `labels` how labels are packed, `security`
tokens and certificates, `memory` where the memory is that both can read.
"""
