/* What the ingester keeps in the database: positions, and rows it could not store. */
