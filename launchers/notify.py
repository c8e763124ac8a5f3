"""How an alert reaches somebody: a webhook, a mail. Each raises NotTold, with words for a log."""

from __future__ import annotations

import asyncio
import os
import smtplib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from email.message import EmailMessage
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from registry.settings import Alerts, Mail

TIMEOUT_S = 10.0

Document = Mapping[str, Any]  # an alert, as JSON
Channel = Callable[[Document], Awaitable[None]]


class NotTold(Exception):
    """An alert did not get through; it is tried again."""


class Refused(NotTold):
    """Somebody answered, and did not take this alert: another may be taken."""


def channels(settings: Alerts, site: str, environ: Mapping[str, str] = os.environ) -> dict[str, Channel]:
    """Those that the site has, by name."""
    found: dict[str, Channel] = {}
    if (url := settings.webhook) is not None:
        found["webhook"] = lambda alert: post(url, {"site": site, **alert})
    if (mail := settings.mail) is not None:
        found["mail"] = lambda alert: asyncio.to_thread(send, mail, site, alert, environ)
    return found


async def post(url: str, document: Document) -> None:
    """Anything but a 2xx is a failure. The URL itself may be a secret, and is not repeated."""
    host = "an address that is no URL"
    try:
        host = urlsplit(url).netloc.rpartition("@")[2]
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
            session.post(url, json=document, allow_redirects=False) as response,
        ):
            if response.status // 100 != 2:
                raise Refused(f"the webhook at {host} answered {response.status}")
    except TimeoutError as e:
        raise NotTold(f"the webhook at {host} has not answered within {TIMEOUT_S:g} s") from e
    except (aiohttp.ClientError, ValueError) as e:  # a ValueError: what is configured is no URL
        raise NotTold(f"the webhook at {host} cannot be reached: {type(e).__name__}") from e


def send(mail: Mail, site: str, document: Document, environ: Mapping[str, str]) -> None:
    """Blocks for as long as the relay takes, which is bounded for each of its answers."""
    try:
        message = EmailMessage()
        message["Subject"] = f"[headgate {site}] {document['message']}"
        message["From"], message["To"] = mail.sender, ", ".join(mail.to)
        message.set_content(f"{document['message']}\n\n{document['at']}, site {site}\n")
        with smtplib.SMTP(mail.host, mail.port, timeout=TIMEOUT_S) as relay:
            if mail.starttls:
                relay.starttls(context=ssl.create_default_context())
            if mail.user is not None:
                relay.login(mail.user, _password(mail, environ))
            relay.send_message(message)
    except smtplib.SMTPDataError as e:  # who sends and who gets it was taken
        raise Refused(f"mail through {mail.host}:{mail.port} is refused: {e}") from e
    except (smtplib.SMTPException, OSError, ValueError) as e:  # a ValueError: what is configured is no host, no header
        raise NotTold(f"mail through {mail.host}:{mail.port} failed: {e}") from e


def _password(mail: Mail, environ: Mapping[str, str]) -> str:
    try:
        word = environ[mail.password_env or ""]
    except KeyError as e:
        raise NotTold(
            f"mail through {mail.host} as {mail.user} needs a password: {mail.password_env} is not set"
        ) from e
    if not word.isascii():  # said here, for smtplib would say one of its characters
        raise NotTold(f"mail through {mail.host} as {mail.user}: the password in {mail.password_env} is not ASCII")
    return word
