"""Compress stored bodies with lz4, which takes less time than pglz, the default."""

from django.db import migrations

# Not on PostgreSQL before 14, nor where it was built without lz4.
IS_POSSIBLE = (
    "SELECT 'lz4' = ANY(enumvals) FROM pg_settings "
    "WHERE name = 'default_toast_compression'"
)


def compress_bodies(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    model = apps.get_model("idempotency", "IdempotencyRecord")
    table = schema_editor.quote_name(model._meta.db_table)
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(IS_POSSIBLE)
        if cursor.fetchone() == (True,):
            cursor.execute(f"ALTER TABLE {table} ALTER body SET COMPRESSION lz4")
        else:
            print("\n    The server has no lz4: it compresses bodies with pglz.")


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
