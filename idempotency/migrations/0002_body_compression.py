from django.db import migrations

from idempotency.database import compress_with_lz4


def compress_bodies(apps, schema_editor):
    model = apps.get_model("idempotency", "IdempotencyRecord")
    table = schema_editor.quote_name(model._meta.db_table)
    if not compress_with_lz4(schema_editor.connection, table, "body"):
        print("\n    This server has no lz4: PostgreSQL compresses bodies with pglz.")


class Migration(migrations.Migration):
    dependencies = [("idempotency", "0001_initial")]

    operations = [
        migrations.RunPython(
            compress_bodies,
            migrations.RunPython.noop,
            # For routers, as they are asked about the table itself.
            hints={"model_name": "idempotencyrecord"},
        )
    ]
