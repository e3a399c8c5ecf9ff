"""SecretService: translates and delegates to `secrets.service`."""

from typing import Any

from fastflow.v1 import secrets_pb2, secrets_pb2_grpc

from fastflow_controlplane import pages
from fastflow_controlplane.api.translate import secret_message
from fastflow_controlplane.secrets.service import SecretService

DEFAULT_PAGE = 100


class SecretServicer(secrets_pb2_grpc.SecretServiceServicer):
    """Secrets for clients; no answer holds a value."""

    def __init__(self, secrets: SecretService) -> None:
        self._secrets = secrets

    async def SetSecret(self, request: secrets_pb2.SetSecretRequest, context: Any) -> secrets_pb2.SetSecretResponse:
        """Stores a new version."""
        stored = await self._secrets.set(
            request.name,
            request.value,
            request.pipelines,
            all_pipelines=request.all_pipelines,
            source=request.source,
            request_id=request.request_id,
        )
        return secrets_pb2.SetSecretResponse(secrets=[secret_message(secret) for secret in stored])

    async def ListSecrets(
        self, request: secrets_pb2.ListSecretsRequest, context: Any
    ) -> secrets_pb2.ListSecretsResponse:
        """Lists names, scopes and versions."""
        page = await self._secrets.list(
            page_size=pages.check_size(request.page_size, DEFAULT_PAGE), page_token=request.page_token
        )
        return secrets_pb2.ListSecretsResponse(
            secrets=[secret_message(secret) for secret in page.secrets], next_page_token=page.next_page_token
        )

    async def DeleteSecret(
        self, request: secrets_pb2.DeleteSecretRequest, context: Any
    ) -> secrets_pb2.DeleteSecretResponse:
        """Hides a secret from later runs."""
        await self._secrets.delete(
            request.name,
            request.pipelines,
            all_pipelines=request.all_pipelines,
            source=request.source,
            request_id=request.request_id,
        )
        return secrets_pb2.DeleteSecretResponse()
