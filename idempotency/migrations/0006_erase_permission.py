"""Give the erasure of records a permission of its own."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("idempotency", "0005_encryption")]

    operations = [
        migrations.AlterModelOptions(
            name="idempotencyrecord",
            options={
                "default_permissions": ("view",),
                "permissions": (
                    ("view_response_body", "Can view stored responses"),
                    ("release_key", "Can release a key: the next request acts again"),
                    ("resolve_record", "Can store the response of an abandoned record"),
                    ("purge_records", "Can purge expired records"),
                    ("view_overview", "Can see sums over all records"),
                    ("erase_records", "Can erase what records say of a person"),
                ),
                "verbose_name": "idempotency record",
                "verbose_name_plural": "idempotency records",
            },
        )
    ]
