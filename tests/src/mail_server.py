"""How the mail server of the tests treats a mail. The server is an independent program: aiosmtpd."""

import asyncio

from aiosmtpd.handlers import Mailbox


class Picky(Mailbox):
    """Keeps mails in a folder. It refuses `gone@...` for ever, and never answers for `hang@...`."""

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("hang@"):
            await asyncio.Event().wait()
        if address.startswith("gone@"):
            return "550 5.1.1 No such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    def prepare_message(self, session, envelope):
        message = super().prepare_message(session, envelope)
        message["X-Encrypted"] = "no" if session.ssl is None else "yes"
        return message
