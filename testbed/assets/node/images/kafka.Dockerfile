# A Kafka that is broker and controller. Replaces Strimzi's, which a cluster without a registry cannot pull.
ARG BASE
FROM ${BASE}
COPY libs /opt/kafka/libs
COPY log4j2.properties /opt/kafka/
COPY --chmod=755 kafka-entrypoint /usr/local/bin/
USER 1001
EXPOSE 9092
ENTRYPOINT ["kafka-entrypoint"]
