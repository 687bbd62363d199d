"""TLS of the server: its certificate and what it asks of clients, tried before anything is started."""

import ssl

from amalgam.errors.serving import TlsUnusable
from amalgam.settings.groups import TlsSettings


def tls_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """What handshakes are made with; None for plain HTTP.

    Raises:
        TlsUnusable: a key without a certificate, files that do not fit or cannot be read, clients whom nobody checks.
    """
    if settings.ssl_certfile is None:
        if settings.ssl_keyfile is not None or settings.ssl_ca_certs is not None or settings.ssl_cert_reqs:
            raise TlsUnusable("there is no certificate")
        return None
    if settings.ssl_cert_reqs and settings.ssl_ca_certs is None:
        raise TlsUnusable("certificates of clients are asked for, and AMALGAM_SSL_CA_CERTS does not say who signs them")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a word for the passphrase OpenSSL would ask for it at the terminal, and wait.
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password=lambda: "")
        context.verify_mode = ssl.VerifyMode(settings.ssl_cert_reqs)
        if settings.ssl_ca_certs is not None:
            context.load_verify_locations(settings.ssl_ca_certs)
        if settings.ssl_ciphers is not None:
            context.set_ciphers(settings.ssl_ciphers)
    except ssl.SSLError as error:
        raise TlsUnusable(f"the files or the ciphers do not fit ({getattr(error, 'reason', None) or error})") from None
    except OSError as error:
        raise TlsUnusable(f"a file cannot be read: {error.strerror or 'input/output error'}") from None
    return context
