-- What is to be announced over MQTT (OGC 18-088 §14.2), beside new Observations, whose update messages tell of them:
-- written in the transaction that creates or changes an entity, taken by processing after its commit.

CREATE TABLE pending_announcements (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity_table text COLLATE "C" NOT NULL,
    entity bigint NOT NULL,
    columns text[] COLLATE "C"  -- that have another value than before; null for a new entity
);

CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO pending_announcements (entity_table, entity, columns) VALUES (TG_TABLE_NAME, NEW.id,
        CASE TG_OP WHEN 'UPDATE' THEN ARRAY(
            SELECT n.key FROM jsonb_each(to_jsonb(NEW)) n JOIN jsonb_each(to_jsonb(OLD)) o USING (key)
            WHERE n.value IS DISTINCT FROM o.value
        ) END);
    RETURN NULL;
END $$;
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON locations FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON historical_locations FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON sensors FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON observed_properties FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON datastreams FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON multi_datastreams FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER announce AFTER INSERT OR UPDATE ON features_of_interest FOR EACH ROW EXECUTE FUNCTION announce();
