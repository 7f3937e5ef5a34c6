"""What has to be so before gRPC is imported."""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "1")  # as the client does, where tests import gRPC before it
