// Generated from the schema files by `make contract`. Change the schema files instead.

/**
 * A raw killmail from EVE's ESI (GET /killmails/{killmail_id}/{killmail_hash}/). The bridge converts the killmail to an update of the type killmail. Members that the update does not need are optional.
 */
export interface EsiKillmail {
  /**
   * The killmail's id, which becomes killmailId.
   */
  killmail_id: number;
  /**
   * The time when the ship was lost, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The time becomes killmailTime. ESI always includes this member.
   */
  killmail_time?: string;
  /**
   * The killmail's hash. ESI does not include this member, but some fetchers add it.
   */
  killmail_hash?: string | null;
  /**
   * The id of the solar system, which becomes systemId.
   */
  solar_system_id: number;
  /**
   * The id of the moon, if the ship was lost at a moon.
   */
  moon_id?: number | null;
  /**
   * The id of the war, if the kill belongs to a war.
   */
  war_id?: number | null;
  /**
   * The victim and the lost ship.
   */
  victim: {
    /**
     * The victim's character id. A structure has no character id. The id becomes victimId, unchanged.
     */
    character_id?: number | null;
    /**
     * The victim's corporation id, which becomes victimCorporationId, unchanged.
     */
    corporation_id?: number | null;
    /**
     * The victim's alliance id, which becomes victimAllianceId, unchanged.
     */
    alliance_id?: number | null;
    /**
     * The victim's faction id.
     */
    faction_id?: number | null;
    /**
     * The type id of the lost ship, which becomes shipTypeId.
     */
    ship_type_id: number;
    /**
     * The damage that the victim took, in hit points.
     */
    damage_taken?: number | null;
    /**
     * The items in the ship, which the bridge ignores.
     */
    items?: unknown;
    /**
     * The position in the solar system, in metres from its star. The bridge ignores the position.
     */
    position?: unknown;
  };
  /**
   * All attackers. The number of attackers becomes attackerCount.
   *
   * Items: One attacker: a character, or an NPC.
   */
  attackers: {
    /**
     * The attacker's character id. An NPC has no character id.
     */
    character_id?: number | null;
    /**
     * The attacker's corporation id.
     */
    corporation_id?: number | null;
    /**
     * The attacker's alliance id.
     */
    alliance_id?: number | null;
    /**
     * The attacker's faction id.
     */
    faction_id?: number | null;
    /**
     * The damage that this attacker did, in hit points.
     */
    damage_done?: number | null;
    /**
     * Whether this attacker did the final damage.
     */
    final_blow?: boolean | null;
    /**
     * The attacker's security status, -10 to 10.
     */
    security_status?: number | null;
    /**
     * The type id of the attacker's ship.
     */
    ship_type_id?: number | null;
    /**
     * The type id of the attacker's weapon.
     */
    weapon_type_id?: number | null;
  }[];
  /**
   * zKillboard's additions: the hash, values in ISK, points, labels and more. The bridge ignores these additions, so they may have any shape.
   */
  zkb?: unknown;
}

/**
 * A document of zKillboard's R2Z2 (ephemeral/<sequence>.json). The bridge converts the document to an update of the type killmail. A document with a null or empty esi is rejected as a placeholder.
 */
export interface R2Z2Document {
  /**
   * The killmail's id from R2Z2. The bridge uses the id in esi instead.
   */
  killmail_id?: unknown;
  /**
   * The killmail's hash.
   */
  hash?: unknown;
  esi: EsiKillmail;
  /**
   * zKillboard's additions: the hash, values in ISK, points, labels and more. The bridge ignores these additions, so they may have any shape.
   */
  zkb?: unknown;
  /**
   * The time when zKillboard created the document, in Unix seconds.
   */
  uploaded_at?: unknown;
  /**
   * The document's position in the sequence of all documents.
   */
  sequence_id?: unknown;
}

/**
 * A package of zKillboard's RedisQ: the content of {"package": ...}. The bridge accepts a package with or without this wrapper, and converts the package to an update of the type killmail. A package without its killmail is rejected as a placeholder.
 */
export interface RedisqPackage {
  /**
   * The killmail's id from RedisQ. The bridge uses the id in killmail instead.
   */
  killID?: unknown;
  killmail: EsiKillmail;
  /**
   * zKillboard's additions: the hash, values in ISK, points, labels and more. The bridge ignores these additions, so they may have any shape.
   */
  zkb?: unknown;
}
