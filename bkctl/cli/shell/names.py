"""The commands of BookieShell, and what each is called in `bkctl`.

A new name that the command tree does not have (yet) is never shown to anybody.
Source: upstream BookieShell.commands (4.17).
"""

import click

NEW_NAMES = {
    "activeledgers": "entrylog live",
    "autorecovery": "autorecovery status",
    "bookieformat": "bookie format",
    "bookieinfo": "bookie show",
    "bookiesanity": "bookie probe",
    "check-db-ledgers-index": "index verify",
    "clusterinfo": "cluster status",
    "convert-to-db-storage": "index convert",
    "convert-to-interleaved-storage": "index convert",
    "cookie_create": "cookie create",
    "cookie_delete": "cookie delete",
    "cookie_generate": "cookie generate",
    "cookie_get": "cookie show",
    "cookie_update": "cookie update",
    "decommissionbookie": "bookie decommission",
    "deleteledger": "ledger delete",
    "endpointinfo": "bookie show",
    "forceauditchecks": "autorecovery audit",
    "initbookie": "bookie init",
    "initnewcluster": "cluster init",
    "lastmark": "journal mark",
    "ledger": "index show",
    "ledgermetadata": "ledger show",
    "listbookies": "bookie list",
    "listfilesondisc": "bookie files",
    "listledgers": "ledger list",
    "listunderreplicated": "autorecovery list",
    "localconsistencycheck": "index verify",
    "lostbookierecoverydelay": "autorecovery delay",
    "metaformat": "metadata format",
    "nukeexistingcluster": "cluster nuke",
    "queryautorecoverystatus": "autorecovery status",
    "readjournal": "journal dump",
    "readledger": "ledger read",
    "readlog": "entrylog dump",
    "readlogmetadata": "entrylog show",
    "rebuild-db-ledger-locations-index": "index rebuild",
    "rebuild-db-ledgers-index": "index rebuild",
    "recover": "bookie recover",
    "regenerate-interleaved-storage-index-file": "index rebuild",
    "simpletest": "bench smoke",
    "triggeraudit": "autorecovery audit",
    "updateBookieInLedger": "metadata replace-bookie",
    "updatecookie": "cookie rename",
    "updateledgers": "metadata replace-bookie",
    "whatisinstanceid": "cluster info",
    "whoisauditor": "autorecovery auditor",
}


def new_name(ctx: click.Context, old_name: str) -> str | None:
    """What `bkctl` calls the old command now; None while it has none."""
    name = NEW_NAMES.get(old_name)
    if name is None:
        return None
    command: click.Command | None = ctx.find_root().command
    for word in name.split():
        if not isinstance(command, click.Group):
            return None
        command = command.get_command(click.Context(command), word)
    return None if command is None else name
